"""Interrupts that are held back reach their handler once, after the block."""

import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import hist_cache.h5ad
from hist_cache.interrupts import held_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    heard: list[str] = []
    before = signal.signal(number, lambda *_: heard.append("handler"))
    try:
        with held_interrupts():
            signal.raise_signal(number)
            signal.raise_signal(number)
            heard.append("block")
        assert heard == ["block", "handler"]
        with held_interrupts():
            heard.append("quiet")
        assert heard == ["block", "handler", "quiet"]
    finally:
        signal.signal(number, before)


def test_an_error_of_the_block_is_kept() -> None:
    with pytest.raises(ValueError, match="mine"), held_interrupts():
        raise ValueError("mine")
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: held_interrupts().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == handler, "another thread hears no signals"


def test_a_table_that_is_being_written_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 that is left amid a file ends in a traceback as the process ends."""
    import anndata.io

    write_elem = anndata.io.write_elem

    def interrupted(*args: object, **more: object) -> None:
        write_elem(*args, **more)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("anndata.io.write_elem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hist_cache.h5ad.write_h5ad(tmp_path / "t.h5ad", anndata.AnnData(np.eye(3, dtype=np.float32)))
    assert anndata.read_h5ad(tmp_path / "t.h5ad").shape == (3, 3)
