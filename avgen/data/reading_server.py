"""Imported by the server of `readers` and by nothing else: what all readers share, and how the server lives.

Nothing here starts a thread. Lance and Arrow do, or refuse to be forked: a reader imports them when it opens a store.
"""

import gc
import os
import signal

# Signals to a whole run are not for the server: without it readers that are still wanted count as dead. It ends when
# the training process and its readers are gone. SIGTERM is held back instead of ignored: one that reaches a process in
# its first instant, while it is as the server made it, waits until the process lets it through. Ignored, it was lost,
# and whoever had sent it waited for that process for ever.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM}))

import avgen.data.store_source  # noqa: E402
import avgen.data.toybox_source  # noqa: E402, F401

# the collector writes to every object it visits, and a page that is written to is no longer shared
gc.collect()
gc.freeze()
