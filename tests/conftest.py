"""What holds for every test."""

import os
import sys

from hypothesis import settings
from libp2p.crypto.pb import crypto_pb2

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's sums depend on the number of threads

# hivemind and libp2p each register the same protobuf file, so one process can load only one of
# them. The program keeps them in two processes; the test runner, which is one, shares the module.
sys.modules["hivemind.proto.crypto_pb2"] = crypto_pb2

# The same examples at every run, so that a failure is everybody's; PARIS_NIGHTLY looks further.
settings.register_profile("steady", derandomize=True)
settings.register_profile("nightly", derandomize=False)
settings.load_profile("nightly" if os.environ.get("PARIS_NIGHTLY") else "steady")
