"""What came out of a sweep: the tidy table, its statistics, figures, tables and report.

Import the module that is needed (`from analysis import frames, statistics, report`); this
package itself imports nothing, so that it costs nothing.
"""
