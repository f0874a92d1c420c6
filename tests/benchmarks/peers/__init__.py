"""What a user would pick instead, doing the same work: stores and chat histories of others.

Each peer runs in a process of its own (`python -m tests.benchmarks.peers NAME FOLDER`), in a
virtual environment of its own (`make bench` makes it; what cannot be installed is left out and
said), with the server that it needs, every one told to fsync before it answers. Libraries have no
server to send requests to: their writers are threads (or tasks, where the library is
asynchronous) of that process, as in an application that uses them.
"""
