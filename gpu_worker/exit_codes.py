"""What a process of the worker says by ending: sysexits.h's numbers."""

# sysexits.h: EX_CONFIG. Starting the engine again cannot help; the log says what to change.
CONFIGURATION_EXIT_CODE = 78
# sysexits.h: EX_SOFTWARE. The device is lost to this process; a new one may have it.
CRASHED_EXIT_CODE = 70
