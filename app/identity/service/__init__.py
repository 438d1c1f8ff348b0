"""The use cases of the identity module, one file each."""
