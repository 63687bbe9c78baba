"""Compute the activations that follow a norm, and the gradients through them, in a kernel.

| name | value                                    | slope                                                  |
|------|------------------------------------------|--------------------------------------------------------|
| none | z                                        | 1                                                      |
| relu | z where z is above 0 or NaN, otherwise 0 | 1 or 0                                                 |
| silu | z / (1 + exp(-z))                        | s (1 + z (1 - s)) with s = 1 / (1 + exp(-z))           |
| gelu | z P(z), P the normal distribution        | P(z) + z exp(-z² / 2) / √(2 π)                         |

The GELU is the exact one of `nn.GELU()` (Hendrycks and Gimpel 2016, arXiv:1606.08415), not the tanh form.
With Q(a) = 1 - P(a), it is the maximum of z and 0, less |z| Q(|z|). The logarithm of Q is nearly a parabola.
So Q is computed as 2 to the power of a polynomial, without a division. Its coefficients are those of the
smallest error on [0, 6], found by linear programming. In float32 the errors of P and of the GELU are below
3e-7.
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
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        # NaN stays NaN by the second term, and an infinite z becomes NaN: infinity times 0
        z = tl.maximum(z, 0.0) - tl.abs(z) * _tail(tl.abs(z))
    return z


@triton.jit
def pass_gradient(dy, z, ACTIVATION: tl.constexpr):
    """Return the gradient by z, of the gradient by the activation of z, both float32."""
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0.0, 0.0, dy)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        dy = dy * (sigmoid * tl.fma(z, 1.0 - sigmoid, 1.0))
    elif ACTIVATION == "gelu":
        below, bell = _normal(z)
        dy = dy * tl.fma(z * 0.3989422804014327, bell, below)  # 1 / √(2 π)
    return dy


@triton.jit
def _normal(z):
    """Return the normal distribution up to z, and exp(-z² / 2)."""
    tail = _tail(tl.abs(z))
    bell = tl.exp2(z * z * -0.7213475204444817)  # log2(e) / 2
    return tl.where(z < 0.0, tail, 1.0 - tail), bell


@triton.jit
def _tail(a):
    """Return the share of the normal distribution beyond a, which is not negative."""
    p = tl.fma(a, -2.3349373350e-6, 3.3737669582e-5)
    p = tl.fma(a, p, -1.6129310825e-4)
    p = tl.fma(a, p, -1.9170541782e-4)
    p = tl.fma(a, p, 7.1268677711e-3)
    p = tl.fma(a, p, -5.2533615381e-2)
    p = tl.fma(a, p, -0.45919826627)
    p = tl.fma(a, p, -1.1511059999)
    return tl.exp2(tl.fma(a, p, -1.0))
