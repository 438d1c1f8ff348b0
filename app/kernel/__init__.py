"""What every module stands on, knowing none of them.

Database gateway, Redis gateway and bus, two-level cache, queue, authorisation, the HTTP edge, settings, errors,
telemetry, ids, clock, pagination, and the embedded servers of development and tests.
"""
