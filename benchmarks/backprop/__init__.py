"""Back-propagation, the baselines: one float network, one INT8 product, and policies that differ.

The question a baseline answers is what a given way of rounding the *gradient* costs, so everything
else is shared. `network.py` builds a plain float network; `layers.py` walks it and swaps each
linear and convolution for an INT8 twin; the twins run one `torch.autograd.Function`,

    forward            acc = A_q W_q^T            y  = acc * s_A * s_W
    weight gradient    acc = G_q^T A_q            gW = acc * s_G * s_A
    input gradient     acc = G'_q W_q             gX = acc * s_G'           s_W is in G' already

all of it int8 operands and int32 accumulators (`products.py`: linear, convolution, depthwise). It
keeps int8 codes for the backward pass, never floats. How a float gradient becomes `G_q` and `G'_q`
is asked of a `GradientQuantizer` (`gradient.py`), one object a layer, which also keeps what that
layer remembers between steps: clips, averages, when it last searched. `policies.py` holds them:

| method | weights | G for gW | G for gX | rounding of G |
| --- | --- | --- | --- | --- |
| `bp-int8` | tensor | tensor | the same codes | nearest |
| `bp-int8-codes` | tensor, and updated by nearest rounding | as `bp-int8` | | |
| `bp-int8-strong` | output channel | output channel, averaged clip | row or sample | stochastic |
| `bp-ui8` | output channel | tensor, searched clip | tensor, that clip | stochastic |
| `bp-dai8` | tensor | output channel, clip by distribution | tensor | stochastic |
| `bp-gdai8-like` | tensor | two parts, searched break-point | the same codes | stochastic |

Activations have one scale a tensor and round to nearest in all of them. Batch norm, activation
functions, losses, biases and the masters stay float32, as in the papers; the optimizer is the one
every method of a run has (`benchmarks/trial.py`). A policy that rounds nothing gives the gradients
of plain autograd: `tests/test_backprop.py` holds the whole frame to that.

A baseline that is easy to beat proves nothing, so these get what Forward-Forward gets: the same
integer kernels, the same compiled or eager chains (`engines/fusion.py`), memory that is used again,
and a ReLU that keeps a byte an element (`masked_relu.py`).
"""
