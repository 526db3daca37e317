"""Running programs of unknown intent, such as those that a model writes.

* :mod:`~corsa_plugins.sandbox.limits`: what a program may use, and what is promised of it;
* :mod:`~corsa_plugins.sandbox.run`: one program, and how it ended;
* :mod:`~corsa_plugins.sandbox.inside`: what stands between it and the machine, a script of its own;
* :mod:`~corsa_plugins.sandbox.probes`: whether this machine keeps every promise, by trying to break each
  (:mod:`~corsa_plugins.sandbox.attacks`).

Linux alone: user, mount, process and network namespaces, a root folder of its own and resource limits, made anew for
every program, with no rights that a user does not have. It holds programs that go wrong and programs that mean harm; a
fault of the kernel's it does not hold.
"""

from corsa_plugins.sandbox.limits import Guarantee, Limits, SandboxError
from corsa_plugins.sandbox.probes import Sandbox, check_sandbox, failing_guarantees
from corsa_plugins.sandbox.run import Outcome, run_program

__all__ = [
    "Guarantee",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "check_sandbox",
    "failing_guarantees",
    "run_program",
]
