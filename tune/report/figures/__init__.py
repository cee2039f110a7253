"""The figures of a report, each a specification that a page draws and a file holds."""
