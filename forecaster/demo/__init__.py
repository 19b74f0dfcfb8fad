"""`make demo`: a broker, a source of ticks and the real daemon on this machine, shown live in the
terminal.
"""
