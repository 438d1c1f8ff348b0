"""The use cases of the jobs module, by what they are about."""
