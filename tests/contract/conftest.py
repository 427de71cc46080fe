import pytest


@pytest.fixture
def counter(monkeypatch):
    """Counts graphs in place of compiling them."""
    import torch
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counting = CompileCounter()
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend=counting)),
    )
    yield counting
    torch._dynamo.reset()
