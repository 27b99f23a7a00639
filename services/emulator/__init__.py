"""The upstream emulator: an OpenAI-compatible server with faults on demand and a log of what it sent.

It plays a foreign upstream, so it shares no code with the gateway's services. See docs/emulator.md.
"""

from services.emulator.app import make_app

__all__ = ["make_app"]
