"""Worker: what runs in a slot's process, and the `Trial` that user code gets.

Importing it costs the standard library and the codec; numpy and torch are imported by user code, or not at all.
"""
