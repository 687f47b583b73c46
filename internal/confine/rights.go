package confine

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dataplane are the rights of the process that moves frames: no capability, no other
// process, no file but those given and what every program of ours reads.
func Dataplane(files ...Files) Rights {
	return Rights{Calls: workCalls(os.Getpid(), forwardingCalls), Files: append(systemFiles(), files...)}
}

// Store are the rights of the process that is the embedded store.
func Store(files ...Files) Rights {
	return Rights{Calls: workCalls(os.Getpid()), Files: append(systemFiles(), files...)}
}

// Keeper are the rights of the process that keeps descriptors and starts the others:
// it binds low ports, reads all that its user may, writes to the files given, and runs
// what lies beside its program, where an upgrade puts another.
func Keeper(program string, files ...Files) Rights {
	return Rights{
		Capabilities: []int{unix.CAP_NET_BIND_SERVICE},
		Calls:        keeperCalls(),
		Files:        append([]Files{{"/", Read}, {filepath.Dir(program), Execute}}, files...),
	}
}

// systemFiles are what the Go runtime and its resolver read. Of /proc, what belongs
// to other processes stays closed: Landlock lets nobody look into a process that is
// not as bound as himself.
func systemFiles() []Files {
	return []Files{
		{"/proc", Read}, {"/etc/hosts", Read}, {"/etc/resolv.conf", Read}, {"/etc/nsswitch.conf", Read},
		{"/etc/protocols", Read}, {"/etc/services", Read},
	}
}

// File gives what is needed to go on reading a file that may be replaced by another
// of its name: its directory, but for one that holds other programs' files, of
// which there is only the file itself as it is now.
func File(path string) Files {
	dir := filepath.Dir(path)
	if filepath.Dir(dir) == "/" || dir == "/" {
		return Files{path, Read}
	}
	return Files{dir, Read}
}
