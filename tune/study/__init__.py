"""One study in the driver: its flags, its plan, its log, and every decision."""
