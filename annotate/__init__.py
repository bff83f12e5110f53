"""How rankings are made: the web pages, their handlers and the person behind each request."""

import os

# Read by Gradio when it is imported, so they are set before any module of this room can do so. The first keeps it from
# calling home; the other two stop a table of past events that costs 2 ms of CPU per event.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
