"""Compute the activations that follow a norm, and the gradients through them, in a kernel.

| name | value                                    | slope                                                  |
|------|------------------------------------------|--------------------------------------------------------|
| none | z                                        | 1                                                      |
| relu | z where z is above 0 or NaN, otherwise 0 | 1 or 0                                                 |
| silu | z / (1 + exp(-z))                        | s (1 + z (1 - s)) with s = 1 / (1 + exp(-z))           |
| gelu | z P(z), P the normal distribution        | P(z) + z exp(-z² / 2) / √(2 π)                         |

The GELU is the exact one of `nn.GELU()` (Hendrycks and Gimpel 2016, arXiv:1606.08415), not the tanh form. P
comes from Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", formula 7.1.26. The error of P is
below 8e-8, a rounding error of float32 near 1, and the exp(-z² / 2) of that formula also serves the slope.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# (Triton's annotations do not describe the language inside a kernel.)

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Return the activation of z, float32."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)  # lets NaN pass
    elif ACTIVATION == "silu":
        z = z * _sigmoid(z)
    elif ACTIVATION == "gelu":
        z = z * _normal(z)[0]
    return z


@triton.jit
def pass_gradient(dy, z, ACTIVATION: tl.constexpr):
    """Return the gradient by z, of the gradient by the activation of z, both float32."""
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0.0, 0.0, dy)
    elif ACTIVATION == "silu":
        sigmoid = _sigmoid(z)
        dy = dy * (sigmoid * tl.fma(z, 1.0 - sigmoid, 1.0))
    elif ACTIVATION == "gelu":
        below, bell = _normal(z)
        dy = dy * tl.fma(z * 0.3989422804014327, bell, below)  # 1 / √(2 π)
    return dy


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _normal(z):
    """Return the normal distribution up to z, and exp(-z² / 2)."""
    bell = tl.exp(z * z * -0.5)
    # the constants are those of the error function, at |z| / √2, and half of its coefficients
    t = 1.0 / tl.fma(tl.abs(z), 0.3275911 * 0.7071067811865476, 1.0)
    tail = tl.fma(t, 0.5 * 1.061405429, 0.5 * -1.453152027)
    tail = tl.fma(t, tail, 0.5 * 1.421413741)
    tail = tl.fma(t, tail, 0.5 * -0.284496736)
    tail = tl.fma(t, tail, 0.5 * 0.254829592) * t * bell
    return tl.where(z < 0.0, tail, 1.0 - tail), bell
