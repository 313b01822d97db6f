"""Speed and losses against the Hugging Face Trainer. Not part of the appliance."""

import svitlo.training  # noqa: F401  # sets what MKL and OpenMP read when torch is loaded: the same for all that is compared
