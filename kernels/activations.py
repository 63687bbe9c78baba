"""Compute the activations that follow a norm, and the gradients through them, in a kernel.

| name | value                                    | slope                                                  |
|------|------------------------------------------|--------------------------------------------------------|
| none | z                                        | 1                                                      |
| relu | z where z is above 0 or NaN, otherwise 0 | 1 or 0                                                 |
| silu | z / (1 + exp(-z))                        | s (1 + z (1 - s)) with s = 1 / (1 + exp(-z))           |
| gelu | z P(z), P the normal distribution        | P(z) + z exp(-z² / 2) / √(2 π)                         |

The GELU is the exact one of `nn.GELU()` (Hendrycks and Gimpel 2016, arXiv:1606.08415), not the tanh form. P
is computed as 1 / (1 + 2^-u), with a polynomial u of z that is fitted to log2(P / (1 - P)). This takes fewer
instructions than an error function, and they limit the speed of a GELU in half precision. Before rounding,
the error of z P(z) is below 7e-8, and that of P below 2e-7.
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
        z = z / _inverse_normal(z)
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
        bell = tl.exp2(z * (z * -0.7213475204444817))  # exp(-z² / 2)
        dy = dy * tl.fma(z * 0.3989422804014327, bell, 1.0 / _inverse_normal(z))  # 1 / √(2 π)
    return dy


@triton.jit
def _inverse_normal(z):
    """Return 1 / P(z); 2^126 where P is smaller."""
    square = z * z
    slope = tl.fma(square, 5.23387871e-09, -3.86016313e-07)
    slope = tl.fma(square, slope, 1.14667379e-05)
    slope = tl.fma(square, slope, -1.59485235e-04)
    slope = tl.fma(square, slope, -9.52950745e-05)
    slope = tl.fma(square, slope, 1.04838194e-01)
    slope = tl.fma(square, slope, 2.30220735)
    return 1.0 + tl.exp2(tl.minimum(-z * slope, 126.0))
