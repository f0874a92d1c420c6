from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.lock import DataDirInUse, DataDirUnusable, own


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with own(tmp_path / "data"), pytest.raises(DataDirInUse) as refused:
        own(tmp_path / "data")
    assert refused.value.pid == os.getpid()
    assert str(os.getpid()) in str(refused.value)
    assert str(tmp_path / "data") in str(refused.value)
    own(tmp_path / "data").close()


def test_the_lock_goes_with_its_owner_however_it_ends(tmp_path: Path) -> None:
    program = "import os, sys; from infra.lock import own; from pathlib import Path\n"
    program += "lock = own(Path(sys.argv[1])); print(lock.fd, flush=True); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    own(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirUnusable, match="CONVO_DATA_DIR"):
        own(tmp_path / "file" / "data")
