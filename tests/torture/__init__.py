"""One harness for each fault: small in `make test`, in full in `make torture`."""
