"""Users: public profiles, preferences and events.

Tables: `users.users`, `users.preferences`, `users.events`; each key starts with the user's id.
Public calls: see `api.py`. Jobs: none of its own.

Invariants:
- A user has exactly one preferences row; both are made in one statement.
- `version` of a row grows with every change of it and is its entity tag.
- `users.users.email` is a copy for reading; identity owns the address that logs in and keeps the copy in step.
- Events are never changed. Lists run in the order of `created_at, id`; `since` and `until` are about `occurred_at`.
- What was cached under `user:{id}` or `events:{id}` is forgotten after each commit that changes it.
"""
