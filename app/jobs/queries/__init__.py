"""The statements of the module, by the use case they belong to."""
