package api

// For tests beside the generated messages, whose package imports this one.
var (
	Marshal   = marshal
	Unmarshal = unmarshal
	Number    = number
)
