"""What `meterway up` prints once everything serves."""

from __future__ import annotations

from services.standalone.data_directory import DataDirectory
from services.standalone.demo import Demo
from services.standalone.plan import ADMIN_EMAIL, Plan


def welcome(plan: Plan, demo: Demo, directory: DataDirectory, seconds: float) -> str:
    upstream = "the built-in emulator" if plan.upstream.is_emulator else plan.upstream.base_url
    return f"""
Meterway is ready after {seconds:.1f} s.

  API        {plan.ports.edge_url}/v1
  Console    {plan.ports.console_url}
             operator {ADMIN_EMAIL}, password {directory.secrets.admin_password}
  API key    {demo.api_key}
  Upstream   {upstream}
  Data       {directory.path}

Try it:

  curl -sN {plan.ports.edge_url}/v1/chat/completions \\
    -H 'Authorization: Bearer {demo.api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model":"gpt-4o-mini","stream":true,"messages":[{{"role":"user","content":"Hello!"}}]}}'

What it cost:

  .venv/bin/meterway balance {demo.account_id} --data-dir {directory.path}
  .venv/bin/meterway usage {demo.account_id} --data-dir {directory.path}

Ctrl-C stops everything.
"""
