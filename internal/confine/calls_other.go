//go:build !amd64 && !arm64

package confine

// auditArch says that there is no filter for this machine.
const auditArch = 0

var hotCallsOfArch, fileCallsOfArch []Call
