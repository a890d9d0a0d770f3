"""Whatever is posted, repeated, labelled, withdrawn, restarted: the store is what a dict says."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.errors import (
    IdConflictError,
    KeyReusedError,
    LabelConflictError,
    RequestError,
    TooManyClassesError,
    UnknownIdError,
)
from daemon.ingest.sample import Sample
from daemon.learning.holdout import Holdout
from daemon.store import SampleReader, Stored, list_samples, request_key
from daemon.store.row_check import CHECKED, is_sound
from tests.daemon_fixtures import SPEC, WAIT_SECONDS, open_store, query, sample

LABELS = st.sampled_from(["a", "b", 7, "7", "c", "one too many"])
IDS = st.sampled_from(["x", "y", "z"])
SAMPLES = st.builds(
    lambda value, label, id, source: sample(value, label, id=id, source=source),
    st.integers(0, 3),
    st.none() | LABELS,
    st.none() | st.none() | IDS,
    st.sampled_from(["cam0", "cam1"]),
)
ROWS = f"SELECT {CHECKED}, crc FROM samples"  # noqa: S608 - our own text


@dataclass
class Kept:
    """What the oracle knows of a sample: as it is, and every label it came or was given with."""

    seq: int
    sample: Sample
    labels: list[str | None]
    withdrawn: bool = False


class StoreMachine(RuleBasedStateMachine):
    drop = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = open_store(self.folder, drop_duplicates=self.drop)
        self.kept: dict[str, Kept] = {}
        self.answers: dict[str, tuple[list[Sample], bytes]] = {}
        self.classes: dict[str, object] = {}
        self.last_seq = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def place(self, label: object) -> bool:
        """Whether the label has a class place, which it takes if there is one."""
        if str(label) not in self.classes and len(self.classes) < 3:
            self.classes[str(label)] = label
        return str(label) in self.classes

    def expect(self, sent: Sample, *, keyed: bool) -> tuple[str, int, bool] | type[RequestError]:
        label = None if sent.label is None else str(sent.label)
        known = self.kept.get(sent.id or "")
        if known is not None and sent.id is not None:
            equal = known.sample.features == sent.features and label in known.labels
            if known.withdrawn or not equal:
                return IdConflictError
            return sent.id, known.seq, True
        if self.drop and sent.id is None and not keyed:
            for name, other in self.kept.items():
                content = other.sample.features, other.labels[-1], other.sample.source
                if content == (sent.features, label, sent.source) and not other.withdrawn:
                    return name, other.seq, True
        if sent.label is not None and not self.place(sent.label):
            return TooManyClassesError
        self.last_seq += 1
        name = sent.id or f"s-{self.last_seq}"
        self.kept[name] = Kept(self.last_seq, sent, [label])
        return name, self.last_seq, False

    def check(self, sent: list[Sample], outcomes: list[Stored | RequestError], keyed: bool) -> None:
        for entry, outcome in zip(sent, outcomes, strict=True):
            expected = self.expect(entry, keyed=keyed)
            if isinstance(expected, tuple):
                assert isinstance(outcome, Stored)
                if not (self.drop and expected[2] and entry.id is None):
                    assert outcome == expected
                else:  # any of several equal ones may be named
                    assert outcome.duplicate
                    assert self.kept[outcome.id].sample.features == entry.features
            else:
                assert type(outcome) is expected

    @rule(sent=st.lists(SAMPLES, min_size=1, max_size=4))
    def post(self, sent):
        self.check(sent, self.store.add(sent).result(WAIT_SECONDS), keyed=False)

    @rule(key=st.sampled_from("kl"), sent=st.lists(SAMPLES, min_size=1, max_size=2))
    def post_with_key(self, key, sent):
        try:
            answer = self.store.add_once(
                sent, request_key(key, sent), lambda outcomes: repr(outcomes).encode()
            ).result(WAIT_SECONDS)
        except KeyReusedError:
            assert self.answers[key][0] != sent
            return
        if key in self.answers:
            assert answer.replayed
            assert (sent, answer.body) == self.answers[key]
            return
        assert not answer.replayed
        self.check(sent, answer.outcomes, keyed=True)
        if answer.body is not None:
            self.answers[key] = sent, answer.body
        assert (answer.body is None) == all(isinstance(o, RequestError) for o in answer.outcomes)

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def repeat(self, data):
        key = data.draw(st.sampled_from(sorted(self.answers)))
        sent, body = self.answers[key]
        answer = self.store.add_once(sent, request_key(key, sent), lambda _: b"again")
        assert answer.result(WAIT_SECONDS).body == body

    @rule(name=IDS | st.integers(1, 12).map("s-{}".format), label=LABELS, correct=st.booleans())
    def label(self, name, label, correct):
        known = self.kept.get(name)
        try:
            found = self.store.label(name, label, replace=correct).result(WAIT_SECONDS)
        except UnknownIdError:
            assert known is None or known.withdrawn
        except LabelConflictError:
            assert not correct
            assert known.labels[-1] not in (None, str(label))
        except TooManyClassesError:
            assert not self.place(label)
        else:
            assert known is not None
            assert not known.withdrawn
            previous = known.labels[-1]
            assert previous is None or correct or previous == str(label)
            if previous != str(label):
                assert self.place(label)
                self.last_seq += 1
                known.seq = self.last_seq
                known.labels.append(str(label))
                known.sample = replace(known.sample, label=self.classes[str(label)])
            names = [None if n is None else str(n) for n in (found.label, found.previous_label)]
            assert names == [str(label), previous]
            assert (found.id, found.seq) == (name, known.seq)

    @rule(name=IDS | st.integers(1, 12).map("s-{}".format))
    def withdraw(self, name):
        try:
            found = self.store.withdraw(name).result(WAIT_SECONDS)
        except UnknownIdError:
            assert name not in self.kept
        else:
            self.kept[name].withdrawn = True
            assert found == (name, self.kept[name].seq)

    @rule()
    def restart(self):
        self.store.close()
        self.store = open_store(self.folder, drop_duplicates=self.drop)

    @invariant()
    def holds_what_the_oracle_holds(self):
        live = {name: kept for name, kept in self.kept.items() if not kept.withdrawn}
        page = list_samples(
            self.store.path, label=None, source=None, after_seq=0, limit=1000, features=True
        )
        found = [
            (entry["id"], entry["seq"], bytes(entry["x"]), str(entry["label"]), entry["source"])
            for entry in page["samples"]
        ]
        assert found == [
            (name, kept.seq, kept.sample.features, str(kept.labels[-1]), kept.sample.source)
            for name, kept in sorted(live.items(), key=lambda item: item[1].seq)
        ]
        counts = self.store.counts
        unlabelled = sum(kept.labels[-1] is None for kept in live.values())
        assert (counts.samples, counts.unlabelled) == (len(live), unlabelled)
        assert counts.last_seq == self.last_seq
        with closing(SampleReader(self.folder, SPEC)) as reader:
            learned = [entry.seq for entry in reader.training(0, 1000)[0]]
            scoring = [entry.seq for entry in Holdout(reader, 1000).samples()]
        labelled = sorted(kept.seq for kept in live.values() if kept.labels[-1] is not None)
        assert sorted(learned + scoring) == labelled
        assert len(learned) == counts.to_learn
        assert all(is_sound(row) for row in query(self.folder, ROWS))
        empty = "SELECT count(*) FROM samples WHERE features = x''"
        # Each label has been a row; only that of a sample which still counts has its features.
        emptied = sum(len(k.labels) - (not k.withdrawn) for k in self.kept.values())
        assert query(self.folder, empty) == [(emptied,)]


class DroppingMachine(StoreMachine):
    drop = True


_PROFILE = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestStore = StoreMachine.TestCase
TestStore.settings = _PROFILE
TestStoreThatDropsDuplicates = DroppingMachine.TestCase
TestStoreThatDropsDuplicates.settings = _PROFILE
