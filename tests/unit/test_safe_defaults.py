"""alignment/__init__.py: nothing is sent to anybody unless it is asked for."""

import subprocess
import sys

import pytest

TOLD = "print(constants.HF_HUB_DISABLE_TELEMETRY, os.environ['DISABLE_SAFETENSORS_CONVERSION'])"


@pytest.mark.parametrize(("wish", "says"), [(None, "True 1"), ("0", "False 1")])
def test_telemetry_is_off_also_where_the_client_was_imported_before_unless_it_is_wanted(wish, says, monkeypatch):
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    if wish:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", wish)
    code = f"import os; from huggingface_hub import constants; import alignment; {TOLD}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == says
