"""How a model is taught: arguments, data, prompts, models, training and generation. Imports nothing from `reward`."""

import logging
import os

from huggingface_hub import constants

# No telemetry, also where the Hub's client was imported before; no request to the Hub to convert somebody's weights;
# and no warnings about kernels that would be fetched from it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
constants.HF_HUB_DISABLE_TELEMETRY = os.environ["HF_HUB_DISABLE_TELEMETRY"].upper() in constants.ENV_VARS_TRUE_VALUES
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
