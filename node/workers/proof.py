"""The program that proves and verifies: one job of `verification.jobs` at a time, under limits.

Takes jobs as that module says, with a `cpu_s` each; says their answers. Hostile bytes reach native
code here and nowhere else: whatever becomes of this process, the node starts another.
"""

import logging
import sys

from node.workers.link import ParentGoneError, ParentLink
from p2p.errors import LimitError
from verification.jobs import carry_out
from verification.sandbox import limit_job, limit_process

logger = logging.getLogger(__name__)


def main() -> None:
    """Serve the node on the descriptor given as the first argument, until it hangs up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    link = ParentLink(int(sys.argv[1]))
    limit_process()
    try:
        while True:
            job = link.receive()
            limit_job(int(str(job["cpu_s"])))
            try:
                for answer in carry_out(job):
                    link.send(answer)
            except LimitError as error:  # values of too many rows for the line: not sent
                link.send({"kind": "failed", "error": str(error)})
    except ParentGoneError:
        logger.info("the node is gone")


if __name__ == "__main__":
    main()
