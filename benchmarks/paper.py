"""What the paper printed, to stand beside what is measured here.

Ma, Panda, Reda: "FF-INT8: Efficient Forward-Forward DNN Training on Edge Devices with INT8
Precision", DAC 2025, arXiv 2506.22771v1. Its device is a Jetson Orin Nano, its batch 32. Values as
printed; what is known to be wrong with them is said beside each.
"""

from __future__ import annotations

from typing import NamedTuple

# Table I: MNIST, plain back-propagation, 500 units a hidden layer; hidden layers to accuracy in %.
TABLE_I = {
    0: {"bp-fp32": 89.5, "bp-int8": 88.7},
    1: {"bp-fp32": 93.4, "bp-int8": 73.8},
    2: {"bp-fp32": 94.5, "bp-int8": 62.4},
    3: {"bp-fp32": 94.3, "bp-int8": 65.2},
}


class Operations(NamedTuple):
    """A row of Table IV: millions of operations for one batch of 10 of a "4-layer MLP".

    Args:
        comparisons: Of the quantization phase.
        additions: Float additions of the quantization phase.
        macs: Multiply-accumulates of the MAC phase: INT8, for `bp-fp32` FP32.
    """

    comparisons: float
    additions: float
    macs: float


# Not to be quoted without its correction: 784-500-500-500-10 has 8.97 million
# multiply-accumulates forward at batch 10 and 23.0 million in a step of back-propagation. 898.2
# is 39 times that, 23.8 is near it; the claim that Forward-Forward needs 2.6 % of the operations
# comes from there.
TABLE_IV = {
    "ff-int8": Operations(0.0324, 0.1659, 23.8),
    "bp-fp32": Operations(0.0, 0.0, 898.2),
    "bp-gdai8-like": Operations(0.0072, 0.0184, 898.2),
}


class Cost(NamedTuple):
    """A row of Table V.

    Args:
        accuracy: In %.
        seconds: Training time, of how many epochs is not said.
        joules: Energy.
        megabytes: Training memory.
    """

    accuracy: float
    seconds: float
    joules: float
    megabytes: float


# Its BP-GDAI8 stands under the name of our stand-in. Its mean saving of memory against BP-GDAI8 is
# 24.5 % by these rows; the abstract's 27.0 % is the best network's.
TABLE_V = {
    "mlp": {
        "bp-fp32": Cost(94.5, 482.3, 2315.0, 247.6),
        "bp-int8": Cost(52.4, 326.1, 1206.6, 213.9),
        "bp-ui8": Cost(92.3, 335.2, 1277.1, 197.0),
        "bp-gdai8-like": Cost(93.8, 344.9, 1345.4, 182.6),
        "ff-int8": Cost(94.3, 312.7, 1097.0, 140.7),
    },
    "mobilenet_v2": {
        "bp-fp32": Cost(91.5, 2370.8, 11593.2, 649.8),
        "bp-int8": Cost(5.9, 1851.6, 7836.0, 571.6),
        "bp-ui8": Cost(87.2, 1960.0, 7618.5, 592.6),
        "bp-gdai8-like": Cost(90.9, 1790.7, 6528.1, 578.9),
        "ff-int8": Cost(91.1, 1703.9, 6174.3, 437.0),
    },
    "efficientnet_b0": {
        "bp-fp32": Cost(89.4, 2692.8, 13356.2, 861.0),
        "bp-int8": Cost(11.8, 2095.0, 8563.9, 703.9),
        "bp-ui8": Cost(85.3, 2230.8, 8656.2, 735.5),
        "bp-gdai8-like": Cost(88.9, 2177.1, 8589.9, 692.0),
        "ff-int8": Cost(88.6, 2129.9, 8093.8, 505.2),
    },
    "resnet18": {
        "bp-fp32": Cost(93.5, 3853.0, 18764.1, 1096.4),
        "bp-int8": Cost(7.2, 2676.1, 10436.8, 885.8),
        "bp-ui8": Cost(89.7, 2873.8, 11466.5, 920.7),
        "bp-gdai8-like": Cost(92.9, 2751.6, 10291.0, 894.1),
        "ff-int8": Cost(93.1, 2697.9, 9926.5, 682.3),
    },
}


class Plateau(NamedTuple):
    """Where a curve of Fig. 6 levels off, read from the plot.

    Args:
        epoch: About.
        accuracy: In %, about.
    """

    epoch: int
    accuracy: float


# Without look-ahead, with it.
FIG_6 = {
    "mlp": (Plateau(180, 90.0), Plateau(130, 93.0)),
    "resnet18": (Plateau(900, 60.0), Plateau(450, 90.0)),
}
