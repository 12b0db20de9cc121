"""SMP events into the store; what is subscribed; what is lost in silence."""
