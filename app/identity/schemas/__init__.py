"""Requests and answers of the identity module, by what they are about."""
