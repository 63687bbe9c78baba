"""Triton kernels of quickres. Each module holds one op; its plain-PyTorch definition stands beside it in `<op>_reference.py`."""
