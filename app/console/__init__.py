"""The console: pages for people, on which everybody sees what is theirs, and administrators the installation.

It has no tables, and no data of its own: every page shows what documented routes answer, asked for in this process with
the caller's own permissions (`local_api`), and every button calls one of them from the browser.
"""
