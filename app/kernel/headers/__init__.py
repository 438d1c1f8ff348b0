"""Headers of HTTP as bytes: reading those of a request, writing the head of a response, and what both agree on."""
