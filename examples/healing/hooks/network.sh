#!/bin/sh
# Restores the route. Its output is told with the event hook_ran; anything but exit 0 fails the rung.
set -eu
echo "restoring the route for $RAZAR_COMPONENT, which said: $RAZAR_LAST_ERROR"
rm -f break/route
