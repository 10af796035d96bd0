#!/bin/sh
# Tells people. Here: a line in a file; with you a message to whoever is on call.
set -eu
printf '%s %s %s: %s\n' "$RAZAR_SEVERITY" "$RAZAR_CHAKRA" "$RAZAR_COMPONENT" "$RAZAR_ABOUT" >> pages.log
