"""Looking: pictures and pages out of run directories."""
