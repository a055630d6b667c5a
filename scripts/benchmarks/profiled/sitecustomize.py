"""Lets a benchmark profile a node that it starts: on this folder's path, SIGUSR2 begins a profile and ends it again.

Python imports a module of this name at every start. The profile goes to the folder that ``PROFILES`` names, under the
process's number. Times are the processor's.
"""

import cProfile
import os
import signal
import time

if "PROFILES" in os.environ:
    _profile = cProfile.Profile(time.thread_time)
    _on: list[bool] = []

    def _turn(number: int, frame: object) -> None:
        if _on:
            _profile.disable()
            whole = os.path.join(os.environ["PROFILES"], str(os.getpid()))
            _profile.dump_stats(whole + ".part")
            os.rename(whole + ".part", whole)
        else:
            _on.append(True)
            _profile.enable()

    signal.signal(signal.SIGUSR2, _turn)
