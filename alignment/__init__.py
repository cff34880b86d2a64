"""How a model is taught: arguments, data, prompts, models, training and generation. Imports nothing from `reward`."""

import logging
import os

# Set before any library is imported: no telemetry, and no warnings about kernels that would be fetched from the Hub.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
