"""What the pages of the studio and of rating studies share: security, the frame of a page, a server on this machine."""
