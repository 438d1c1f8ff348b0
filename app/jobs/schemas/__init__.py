"""Requests and answers of the jobs module, by what they are about."""
