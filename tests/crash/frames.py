# Run inside gdb: prints each thread's frames as tab separated lines (thread, function, file, line, kind).
import gdb
kinds = {gdb.NORMAL_FRAME: "normal", gdb.INLINE_FRAME: "inline", gdb.TAILCALL_FRAME: "tailcall", gdb.SIGTRAMP_FRAME: "signal"}
def show(thread):
    thread.switch()
    frame = gdb.newest_frame()
    count = 0
    while frame is not None and count < 120:
        try:
            sal = frame.find_sal()
            file = sal.symtab.filename if sal.symtab else ""
            line = sal.line if sal.symtab else 0
        except gdb.error:
            file, line = "", 0
        print("FRAME\t%d\t%s\t%s\t%d\t%s" % (thread.ptid[1] or thread.ptid[0], frame.name() or "??", file, line, kinds.get(frame.type(), "other")))
        count += 1
        try:
            frame = frame.older()
        except gdb.error as error:
            print("STOP\t%s" % error)
            break
threads = sorted(gdb.selected_inferior().threads(), key=lambda t: t.num)
for thread in threads:
    show(thread)
