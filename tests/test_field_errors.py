"""What is wrong with an object is said in words of JSON: the field, what it holds, what it may."""

from __future__ import annotations

import pytest

from daemon.errors import BadFieldError
from daemon.http.model_routes import RollbackBody
from daemon.http.train_routes import PauseBody, ResumeBody, TrainBody
from daemon.ingest.encoding import decode_json
from daemon.ingest.tensors import _SampleHeader

TENSOR = b'"name": "x", "shape": [1], "datatype": "UINT8"'
KNOWN = "those known are max_steps, max_seconds, reason"


@pytest.mark.parametrize(
    ("kind", "body", "field", "says"),
    [
        (TrainBody, b"[]", None, "the body: an object is wanted, a list was found"),
        (TrainBody, b'{"secret": 1}', None, f"the body has an unknown field; {KNOWN}"),
        (ResumeBody, b'{"secret": 1}', None, "an unknown field; it has none: leave it out"),
        (
            TrainBody,
            b'{"max_steps": "secret"}',
            "max_steps",
            "field 'max_steps': a whole number or null is wanted, text was found",
        ),
        (TrainBody, b'{"max_steps": 0}', "max_steps", "a whole number >= 1 is wanted"),
        (PauseBody, b'{"seconds": 0}', "seconds", "a number > 0.0 is wanted"),
        (RollbackBody, b'{"to": []}', "to", "a whole number or text or null is wanted, a list was"),
        (TrainBody, b'{"reason": "secret\\n"}', "reason", "does not print was found: send"),
        (TrainBody, b'{"reason": "\\u001b[2Jsecret"}', "reason", "does not print was found"),
        (TrainBody, b'{"reason": "\\u202esecret"}', "reason", "does not print was found"),
        (TrainBody, b'{"reason": "%s"}' % (b"x" * 201), "reason", "text of length <= 200 is"),
        (
            _SampleHeader,
            b'{"inputs": [{%s, "parameters": {"secret": 8}}]}' % TENSOR,
            "inputs[0].parameters",
            "field 'inputs[0].parameters' has an unknown field; those known are binary_data_size",
        ),
    ],
)
def test_it_names_the_field_and_what_it_may_hold(kind, body, field, says) -> None:
    with pytest.raises(BadFieldError) as caught:
        decode_json(body, kind)
    assert caught.value.field == field
    assert says in str(caught.value)
    for hidden in ("secret", "`", "Expected", "xxx"):
        assert hidden not in str(caught.value)


@pytest.mark.parametrize("reason", ["", "drift on cam2", "Prüfstand 3: Linse gewechselt", "傘"])
def test_an_operators_words_are_free_within_a_line(reason) -> None:
    assert decode_json(f'{{"reason": "{reason}"}}'.encode(), TrainBody).reason == reason
