"""The real jtop service (jetson-stats) on a made-up Orin Nano: tree, service, nvpmodel."""
