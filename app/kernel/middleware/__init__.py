"""The pure-ASGI layers around the framework, outermost first: request context, admission, authentication, response
cache.
"""
