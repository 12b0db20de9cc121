"""What browsers get: plain files, as they are."""
