//! DStore's bookkeeping as a pure state machine.
