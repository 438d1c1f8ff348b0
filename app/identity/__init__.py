"""Accounts, sessions and tokens: the proof of identity, in one place.

Tables (schema `identity`): accounts, sessions, revocations, one_time_tokens, totp_factors, recovery_codes, api_keys,
signing_keys, security_events.

Public calls are in `api.py`; `service.authentication.TokenAuthenticator` is plugged into the kernel's middleware.

Invariants:
- No check of an access token costs I/O once the process has seen it, and a revocation is effective in every process
  before the call that caused it has answered.
- Nothing stored here can be used as a credential: tokens are derived or kept as hashes, keys and seeds are sealed.
- An unknown e-mail address is treated exactly like a known one until the password was right.
- The end of a session that a log-in causes is published later, from a mark in its row.
- An account and its `users` row are made and anonymised in one transaction.
"""
