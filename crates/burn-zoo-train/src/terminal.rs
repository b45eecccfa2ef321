//! The terminal under the learner's screen.

/// Lets Ctrl-C be a signal again. The screen switches the terminal to raw mode, where Ctrl-C is a key
/// like any other, and does not listen to it. It does so on a thread of its own, which this waits for
/// on another; the screen restores all modes when it closes.
pub(crate) fn keep_ctrl_c() {
    #[cfg(unix)]
    std::thread::spawn(|| {
        use std::time::{Duration, Instant};
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if is_raw_with_signals() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Switches signals on in a terminal that is in raw mode. Returns whether it is.
#[cfg(unix)]
fn is_raw_with_signals() -> bool {
    let mut modes = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `modes` is a valid place for the result, and is read only when the call succeeds.
    unsafe {
        if libc::tcgetattr(libc::STDIN_FILENO, modes.as_mut_ptr()) != 0 {
            return false;
        }
        let mut modes = modes.assume_init();
        let is_raw = modes.c_lflag & libc::ICANON == 0;
        if is_raw {
            modes.c_lflag |= libc::ISIG;
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &modes);
        }
        is_raw
    }
}
